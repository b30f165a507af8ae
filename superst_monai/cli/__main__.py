"""`python -m superst_monai.cli`: the command `superst` without its script."""

from superst_monai.cli import main

if __name__ == "__main__":
    main()
