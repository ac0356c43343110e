"""`python -m tfjoint`, the same as the command `tfjoint`."""

from tfjoint.command import main

if __name__ == "__main__":
    main()
