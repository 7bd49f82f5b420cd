"""`python -m vmferry` is the vmferry command."""

from vmferry.cli.main import main

if __name__ == "__main__":
    main()
