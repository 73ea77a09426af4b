"""Better answers from a model as it is: best-of-N, rejection, search and realignment while decoding."""
