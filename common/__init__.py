"""What owner and contributor must agree on: models, data, training, weights on the wire, identity, errors."""

# Names like `common` are generic, so owner and contributor look for this mark to know the package is Portier's.
PORTIER = True
