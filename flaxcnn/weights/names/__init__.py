"""What other libraries call the parameters of each network.

`names/x.py` is for the networks of `models/x.py`. It defines

- LAYOUTS: for each layout a function of the network that returns its rules;
- AUXILIARY, where there are auxiliary classifiers: a pattern that their tensors' names begin with,
  which a network without them leaves out;
- OTHER_NAMES, where files of other releases call tensors differently: for each layout pairs of a
  pattern that a name begins with and what stands in the layout instead.
"""
