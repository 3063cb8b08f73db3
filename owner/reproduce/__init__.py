"""The experiments of El Moadine, Coatrieux, Bellafqira (ICDF2C 2022), run anew: their Tables 1 to 3, Figures 2, 5 and 6.

    portier-owner reproduce              or, with the training and detection core alone: python -m owner.reproduce

`paper` holds the printed figures, `settings` what the paper leaves open, `steps` what is run in which order; `training`,
`detection`, `gate` run a step, `runner` runs what is missing; `report` and `drawings` make the page of what is there.
"""
