-- page(retry or dead, score, id, skip, n) -> {id, score, history or '', recovered or '0'}...: what comes after that score and id,
-- without the first `skip` of all. Found by halving, so that what is removed meanwhile shifts nothing.
local schedule = assert(({retry = RETRY, dead = DEAD})[ARGV[1]])
local score, id = assert(tonumber(ARGV[2])), ARGV[3]
local low, high, n = assert(tonumber(ARGV[4])), redis.call('ZCARD', schedule), assert(tonumber(ARGV[5]))
while low < high do
  local middle = math.floor((low + high) / 2)
  local at = redis.call('ZRANGE', schedule, middle, middle, 'WITHSCORES')
  local its = tonumber(at[2])
  if its < score or its == score and at[1] <= id then low = middle + 1 else high = middle end
end
local found, out = redis.call('ZRANGE', schedule, low, low + n - 1, 'WITHSCORES'), {}
for i = 1, #found, 2 do
  out[#out + 1] = {found[i], found[i + 1],
    redis.call('HGET', HISTORY, found[i]) or '', tostring(count_of(redis.call('HGET', RECOVERED, found[i]) or '0'))}
end
return out
