from .answers import VideoAnswer as VideoAnswer, check_output_file as check_output_file, save_answers as save_answers
from .classify import classify_videos as classify_videos
from .embedding_cache import EmbeddingCache as EmbeddingCache
