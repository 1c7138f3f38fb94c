"""The training loop: how a call of ``fit`` turns batches, a method's loss and the options into trained weights."""
