"""A package that adds a data set, a network, a loss term and a procedure to kdx."""
