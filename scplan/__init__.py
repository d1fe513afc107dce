"""scplan: Terraform for what is plugged into running containers. Imports nothing."""

__version__ = "0.1.0"
