"""Training data: reads rows of any form, checks all of them, and gives each as token ids with what is learned."""
