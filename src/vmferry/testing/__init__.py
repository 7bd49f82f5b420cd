"""Public conformance kits and strict fakes: for our own tests and for anyone who writes another implementation."""
