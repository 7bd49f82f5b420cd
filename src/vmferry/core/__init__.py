"""Pure decisions: values in, values out; nothing here does I/O, tells the time or draws random numbers."""
