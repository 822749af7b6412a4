"""Log-mel front ends in numpy."""
