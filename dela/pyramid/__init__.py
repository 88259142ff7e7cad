"""The pyramid, the input of networks that search neighbors once per stage: CPU and GPU."""
