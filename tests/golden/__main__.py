import sys

from tests.golden import NAMES, write

for name in sys.argv[1:] or NAMES:
    write(name)
    print(name)
