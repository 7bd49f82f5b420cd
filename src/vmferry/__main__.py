"""`python -m vmferry` is the vmferry command."""

import sys

if __name__ == "__main__":
    try:
        from vmferry.cli.main import main
    except KeyboardInterrupt:  # Ctrl-C before anything was begun
        sys.exit(130)
    main()
