"""Measurements, each side by side with a peer or a floor in the same run: `python -m benchmarks`.

Times on a shared machine mean little by themselves; ratios of things measured in turn mean more. Every
measurement prints, and returns, the ratio that it is about and its target.
"""
