"""Log-mel features in numpy: one module for each kind of front end."""
