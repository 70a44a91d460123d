-- Record how items of a batch ended, each one once.
-- KEYS: batch, results, stream, members
-- ARGV: ttl, then for each item: number, "done" or "failed", result
-- Returns how many were recorded now.
local batch, results, stream, members = unpack(KEYS)
if redis.call('EXISTS', batch) == 0 then return 0 end

local fresh = {}
for i = 2, #ARGV, 3 do
  if redis.call('HSETNX', results, ARGV[i], ARGV[i + 2]) == 1 then
    redis.call('HINCRBY', batch, ARGV[i + 1], 1)
    fresh[#fresh + 1] = ARGV[i]
  end
end
if #fresh > 0 then
  redis.call('XADD', stream, '*', 'items', table.concat(fresh, ','))
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[1]) end
end
return #fresh
