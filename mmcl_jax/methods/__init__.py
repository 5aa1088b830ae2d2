"""One file per method: paper, equation and deviations in its docstring; its `make` takes `config.method`."""
