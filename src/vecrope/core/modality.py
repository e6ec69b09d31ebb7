"""What each token is: text, image, video or masked."""

TEXT, IMAGE, VIDEO, MASKED = 0, 1, 2, 3
# The number of open markers at the end of a row whose markers nobody has looked at.
UNKNOWN_MARKERS = -(2**31)
