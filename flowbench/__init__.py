"""flowbench: which elementwise transform to use inside a transformer autoregressive flow."""

__version__ = "0.1.0"
