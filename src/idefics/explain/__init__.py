"""Attribution maps: how much each part of a picture carried each word of an answer."""
