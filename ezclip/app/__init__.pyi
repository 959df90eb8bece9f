from .page import AppSettings as AppSettings, make_page as make_page, serve as serve
