"""A task of its own: this folder is all that a new one needs beside its line in the register."""
