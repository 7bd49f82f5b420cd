"""How progress, reports and checks look. Pure: facts in, text or renderables out; nothing here asks or waits."""
