"""Links, addresses, routes and bridges of network namespaces."""
