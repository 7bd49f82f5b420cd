"""The words between command line, agents and other programs: pydantic models and the OpenAPI page made from them."""
