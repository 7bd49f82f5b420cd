"""Who may do what: the fleet's certificate authority, identities, membership, enrolment and renewal."""
