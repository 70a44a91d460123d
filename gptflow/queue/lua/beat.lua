-- Renew the leases of everything that a worker runs.
--
-- KEYS: the sorted set of leases
-- ARGV: prefix, seconds of the lease, then id and fence of each job
-- Returns the ids of those that are no longer the worker's: cancelled, or given to another.
local lost, till = {}, now() + ARGV[2]
for index = 3, #ARGV, 2 do
  local id, fence = ARGV[index], ARGV[index + 1]
  local key = job_key(id)
  local held = read(key, 'state', 'fence')
  if held.state == 'running' and held.fence == fence then
    call('HSET', key, 'until', text(till))
    call('ZADD', P .. 'lease', till, id)
  else
    lost[#lost + 1] = id
  end
end
return lost
