-- The twin of the PostgreSQL migration of the same number, which argues.
alter table dead_letters add column device_id blob check (length(device_id) = 16);
alter table dead_letters add column attempt integer not null default 1;
alter table dead_letters add column copy_part integer;
alter table dead_letters add column copy_off integer;
alter table dead_letters add column replay_part integer;
alter table dead_letters add column replay_epoch blob check (length(replay_epoch) = 16);
alter table dead_letters add column replay_off integer;
