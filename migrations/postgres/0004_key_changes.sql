-- Which keys changed lately: created, revoked, or given an end. A process without a shared bus asks ten
-- times a second for what lies above the number it knows.
--
-- A column and no table of changes: a key's last change is all that anybody needs, and nothing has to be
-- cleaned up. No sequence: its numbers become visible in another order than they are given, and who asks
-- "above 7" would never see a 6 that committed later. Changes are rare, so they take their number, one
-- more than the greatest, under an advisory lock that they hold until they commit.
--
-- 0: not changed since this file was applied.
alter table api_keys add column change bigint not null default 0;

create index api_keys_change on api_keys (change, hash);
