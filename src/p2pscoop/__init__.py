"""p2pscoop: brokerless peer-to-peer work stealing for Python."""

__version__ = "0.1.0"
