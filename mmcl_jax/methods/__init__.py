"""One file per method: its docstring has the paper, the equation and each deviation; its `make` takes `config.method`."""
