"""Whether an evaluation can be true: measurements on a sample of the images, and the audit that judges them."""
