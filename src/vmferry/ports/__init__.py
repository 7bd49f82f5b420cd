"""What the outside must be able to do, as small Protocol classes; no implementation here."""
