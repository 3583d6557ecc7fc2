"""The programs that train, evaluate and compare; they read no variables of notebooks and other programs."""

from lmreg_jax.cli.host import neutralise

neutralise()
