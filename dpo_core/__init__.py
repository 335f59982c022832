import logging

# Installed beside peft, bitsandbytes says at every start which 4-bit kernels of others it could not find.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
