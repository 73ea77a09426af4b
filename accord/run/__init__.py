"""The parts of a run that `alignment.py` and `train.py` put together; each knows nothing of the others' order."""
