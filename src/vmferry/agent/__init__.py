"""The host daemon: HTTP API, enrolment, configuration, supervision, and the wiring that joins all parts."""
