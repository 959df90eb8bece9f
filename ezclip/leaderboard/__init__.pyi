from .encoder import LeaderboardEncoder as LeaderboardEncoder, evaluate_tasks as evaluate_tasks
