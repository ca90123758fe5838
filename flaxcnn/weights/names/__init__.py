"""What other libraries call the parameters of each network.

`names/x.py` is for the networks of `models/x.py`. It defines LAYOUTS: for each layout a function
of the network that returns its rules.
"""
