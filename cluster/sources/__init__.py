"""Lists of videos: folders, urls, Flickr, YFCC100M; licenses; downloads."""
