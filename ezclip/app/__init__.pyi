from .page import AppSettings as AppSettings
from .page import make_page as make_page
from .page import serve as serve
