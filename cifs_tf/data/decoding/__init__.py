"""Image files to pixels, in two ways with the same bits.

`files` decodes the files of a folder for training, in Python, with Pillow where it is faster; `graph` decodes what is
sent to an export, for its signature `encoded`, in TensorFlow operations alone, which are saved with the network.
"""
