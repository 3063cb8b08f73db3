"""`portier-owner compare`: the gatekeeper against the baselines of federated learning, as one grid of two settings (docs/compare.md).

Running the cells is `owner.federated`'s; here are the configurations, the command and the page that is made of the records.
"""
