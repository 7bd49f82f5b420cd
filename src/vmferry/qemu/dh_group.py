"""A fixed Diffie-Hellman group for QEMU's end of an encrypted stream.

Without one in the key's directory, QEMU looks for a prime of its own when it is told to listen: 0.1 to 2 s of one CPU
before a stream can begin, in which its monitor does not answer. A well-known group is as good: nothing secret is in it.

Source: RFC 7919 appendix A.1 (ffdhe2048) as PKCS #3 DHParameter; QEMU crypto/tlscreds.c, QCRYPTO_TLS_CREDS_DH_PARAMS.
"""

#: The name that QEMU looks for.
FILE_NAME = "dh-params.pem"

FFDHE2048 = """\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""
