"""The configuration: from the words of the command line to typed settings. No module here imports torch.

- The command line: `argv`, `mistyped`, `quoting`, `command_line`, `experiments`, `hydra_errors`.
- The settings: `groups` and `request` (dataclasses), `settings` (reads and checks), `keys`, `mistakes`, `migrate`, `schema`;
  `resolvers` (functions that conf/ calls by `${NAME:…}`).
- The checks: `compatibility` (settings that exclude each other), `unread` (overrides that nothing would read).
- The choices by name: `rules`, `models`, `datasets`, `losses`. Each of these modules has a `registry`, which `plugins` extend.
"""
