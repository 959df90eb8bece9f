"""Option files of the published experiments, found by bare name: `ezclip run base_to_novel_ucf101 …`."""
