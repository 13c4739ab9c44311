"""`minigptv2 doctor`: what a run would trip over on this machine, found before it starts, each with what to do."""
