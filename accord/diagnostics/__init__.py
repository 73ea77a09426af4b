"""What preference training does besides lowering its loss: rankings, gradients of a pair, the price of distance."""
