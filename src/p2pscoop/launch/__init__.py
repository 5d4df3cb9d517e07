"""Where the nodes of a run are started: from options, a hostfile or a scheduler's environment to hosts.

One module for each source, all of them functions of text and environment variables, and `plan`, which chooses
among them. `ssh` makes the command lines that start nodes on another host, `remote` is what runs there, and
`fleet` holds the connections.
"""
